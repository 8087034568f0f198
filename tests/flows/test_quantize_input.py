"""What `nimble quantize` refuses, in a sentence each and with nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows.cli_quantize import CANDIDATES
from flows.core_choice import ChosenCore, choose_core
from flows.quantize_options import fitting_candidates, read_candidates, read_max_loss
from quant import LayerSettings, NMPattern

SHORT = ("--samples", 4, "--held-out", 2, "--length", 32)

BAD_OPTIONS = {
    "no way": (
        (),
        "Nothing says how to quantise; give --max-loss 0.5% to have each layer's settings chosen, --pattern 2:4 to set "
        "them for all layers, or --recipe with a file that sets them for each.",
    ),
    "two ways": (
        ("--pattern", "2:4", "--max-loss", "1%"),
        "--max-loss and --pattern were given; settings come from one of them.",
    ),
    "AWQ in a search": (("--max-loss", "1%", "--awq"), "--awq has a meaning with --pattern or --recipe only."),
    "objective by hand": (
        ("--pattern", "2:4", "--objective", "cycles"),
        "--objective has a meaning with --max-loss only.",
    ),
    "memory without cycles": (
        ("--max-loss", "1%", "--memory", "hbm2-u280"),
        "--memory has a meaning with --objective cycles only.",
    ),
    "no percentage": (
        ("--max-loss", "0.5"),
        "--max-loss is '0.5'; it is the allowed rise of the perplexity as a positive percentage, such as 0.5%.",
    ),
    "objective": (
        ("--max-loss", "1%", "--objective", "speed"),
        "--objective is 'speed'; it must be one of size, cycles.",
    ),
    "rounds": (("--max-loss", "1%", "--rounds", "0"), "--rounds is 0; it must be 1 or more."),
    "group": (
        ("--pattern", "2:4", "--group", "6"),
        "Group size 6 is not a multiple of m = 4 of pattern 2:4; allowed are multiples of 4 or -1 for one group per "
        "row.",
    ),
    "method": (
        ("--pattern", "2:4", "--method", "gptq"),
        "The method is 'gptq'; it must be one of joint, sparsegpt-gptq, sparsegpt-rtn, wanda-gptq, wanda-rtn, "
        "magnitude-gptq, magnitude-rtn.",
    ),
    "scales": (
        ("--pattern", "2:4", "--scale-bits", "4"),
        "Group scales of 4 bits were asked for; they have 8 or 16.",
    ),
    "scales of the core": (
        ("--pattern", "2:4", "--scale-bits", "16"),
        "Group scales of 16 bits were asked for, but this core's have 8; ask for fewer, or give a core whose "
        "scale_bits is 16.",
    ),
    "window": (
        ("--max-loss", "1%", "--candidates", "dense,16:32"),
        "model.layers.0.self_attn.q_proj does not run on this core: Pattern 16:32 has blocks of 32 weights, but this "
        "core's window holds 16; patterns with m up to 16 are allowed.",
    ),
    "format": (
        ("--pattern", "2:4", "--format", "gguf"),
        "The format is 'gguf'; it must be one of packed, compressed-tensors.",
    ),
    "samples": (("--pattern", "2:4", "--samples", "0"), "--samples is 0; it must be 1 or more."),
    "held out": (("--pattern", "2:4", "--held-out", "0"), "--held-out is 0; it must be 1 or more."),
    "length": (
        ("--pattern", "2:4", "--length", "513"),
        "--length is 513, but {model} is made for at most 512 tokens.",
    ),
    "nothing to count": (
        ("--max-loss", "1%", "--objective", "cycles", "--prefill", "0", "--decode", "0"),
        "prefill is 0 and decode 0; both are 0 or more, and one of them is not 0.",
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str, trained_model: Path, refusal: Any, tmp_path: Path) -> None:
    options, sentence = BAD_OPTIONS[case]
    given = [option for option in options if isinstance(option, str)]
    short = [] if {"--samples", "--held-out", "--length"} & set(given) else SHORT
    assert refusal("quantize", trained_model, "-o", tmp_path / "out", *short, *options) == sentence.format(
        model=trained_model
    )
    assert list(tmp_path.iterdir()) == []


def test_bad_folders(trained_model: Path, refusal: Any, tmp_path: Path) -> None:
    asked = ("--pattern", "2:4", *SHORT)
    there = tmp_path / "there"
    there.mkdir()
    assert refusal("quantize", trained_model, "-o", there, *asked) == (
        f"{there} exists already; give the name of a new folder."
    )
    missing = tmp_path / "missing"
    assert refusal("quantize", missing, "-o", tmp_path / "out", *asked) == (
        f"{missing} is not a folder; give one with a config.json and safetensors files."
    )
    (there / "notes.txt").write_text("mine")
    assert refusal("quantize", trained_model, "-o", tmp_path / "out", "--work", there, *asked) == (
        f"{there} holds files, but no run.json; give a new folder for the run's work."
    )
    out = tmp_path / "out"
    for work in (out, out / "work"):
        assert refusal("quantize", trained_model, "-o", out, "--work", work, *asked) == (
            f"--work {work} lies in {out}, which is made at the end; give another folder."
        )
    config = json.loads((trained_model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (there / "config.json").write_text(json.dumps(config))
    (there / "model.safetensors").symlink_to(trained_model / "model.safetensors")
    assert refusal("quantize", there, "-o", tmp_path / "out", *asked) == (
        f"{there} is quantised already; give the folder of the float model."
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_a_text_too_short(trained_model: Path, refusal: Any, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("too short " * 20)
    complaint = refusal("quantize", trained_model, "-o", tmp_path / "out", "--pattern", "2:4", *SHORT, "--text", text)
    assert complaint == (
        f"The text in {text} has 40 tokens for evaluation, but 2 samples of 32 need 64; give a longer text, fewer "
        "samples or shorter ones."
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('default = "float"', "recipe.toml leaves every layer float; nothing would be quantised."),
        (
            'default = "2:4"\n[[layer]]\nmatch = "fc1"\npattern = "dense"',
            "The rule 'fc1' of recipe.toml matches no layer that it could prune; their kinds are q_proj, k_proj, "
            "v_proj, o_proj, gate_proj, up_proj, down_proj.",
        ),
        (
            'default = "1:3"',
            "Group size 128 is not a multiple of m = 3 of pattern 1:3; allowed are multiples of 3 or -1 for one group "
            "per row.",
        ),
    ],
)
def test_recipes_that_fit_no_model(text: str, sentence: str, trained_model: Path, refusal: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    assert refusal("quantize", trained_model, "-o", tmp_path / "out", *SHORT, "--recipe", recipe) == sentence


def test_another_run_s_work_is_not_taken_over(trained_model: Path, nimble: Any, refusal: Any, tmp_path: Path) -> None:
    import flows.quantize

    def stop(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    asked = ("quantize", trained_model, "-o", tmp_path / "out", "--pattern", "2:4", *SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.quantize, "write_packed", stop)
        assert nimble(*asked).exit_code == 130
    complaint = refusal(*asked, "--seed", 1)
    assert complaint.startswith(f"{tmp_path}/.out.work/quantised-")
    assert complaint.endswith(
        " holds the work of another run, with a different calibration text and seed; give another folder, or delete it "
        "to start again."
    )


def test_a_loss_that_no_choice_keeps_to(
    trained_model: Path, refusal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.quantize
    from quant.judgement import Rise

    monkeypatch.setattr(flows.quantize, "rise_of", lambda before, after: Rise(0.02, 0.0))
    asked = ("--max-loss", "1%", "--candidates", "dense,2:4", "--group", 32, "--rounds", 1, *SHORT)
    assert refusal("quantize", trained_model, "-o", tmp_path / "out", *asked) == (
        "No choice keeps to a rise of 1.000%: the smallest that was measured, in 5 trials, is 2.020%; allow more. "
        f"What was measured is kept in {tmp_path}/.out.work."
    )
    assert not (tmp_path / "out").exists()


ROWS = st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=2), min_size=1, max_size=8)


@given(many=ROWS, taken=st.data())
def test_samples_that_are_left(many: list[list[int]], taken: st.DataObject) -> None:
    from flows.quantize import without

    chosen = taken.draw(st.sets(st.integers(0, len(many) - 1), max_size=len(many) - 1))
    few = [many[index] for index in sorted(chosen)]
    left = without(torch.tensor(many), torch.tensor(few).reshape(-1, 2)).tolist()
    assert sorted(left + few) == sorted(many)


def test_the_usual_candidates_are_those_that_fit_the_core() -> None:
    settings = read_candidates(CANDIDATES, {"group_size": 128})
    tiny = choose_core("tiny", None)
    assert fitting_candidates(settings, tiny) == settings
    narrow = ChosenCore("narrow", tiny.config.replace(window=4))
    assert [str(one.pattern) for one in fitting_candidates(settings, narrow)] == ["1:1", "1:1", "3:4", "2:4", "1:4"]


@pytest.mark.parametrize("text", ["0.5", "0%", "-1%", "nan%", "inf%", "%", "a%", "1e999%", "5 %%"])
def test_what_is_no_loss(text: str) -> None:
    with pytest.raises(ValueError, match="it is the allowed rise of the perplexity as a positive percentage"):
        read_max_loss(text)


def test_losses_are_percentages() -> None:
    assert read_max_loss("0.5%") == 0.005
    assert read_max_loss(" 2 % ") == 0.02


def test_candidates_are_patterns_with_groups_and_methods() -> None:
    others = {"group_size": 64, "method": "wanda-rtn", "symmetric": False}
    assert read_candidates("dense, 2:4/32,4:8/-1/joint", others) == (
        LayerSettings(NMPattern(1, 1), 64, False, "wanda-rtn"),
        LayerSettings(NMPattern(2, 4), 32, False, "wanda-rtn"),
        LayerSettings(NMPattern(4, 8), -1, False, "joint"),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "2:4/64/joint/8",
            "The candidate '2:4/64/joint/8' was given; it is a pattern, and perhaps a group and a method.",
        ),
        ("2:4/all", "The candidate '2:4/all' has the group 'all'; it must be an integer."),
        ("dense,2:4/6", "The candidate '2:4/6' is not possible: Group size 6 is not a multiple of m = 4"),
        ("2:4/64/gptq", "The candidate '2:4/64/gptq' is not possible: The method is 'gptq'"),
        ("", "The candidate '' is not possible: Pattern '' is not understood"),
        ("2:4,2:4/128", "The candidate '2:4/128' was given twice."),
    ],
)
def test_bad_candidates(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^The candidate") as refused:
        read_candidates(text, {"group_size": 128})
    assert str(refused.value).startswith(sentence)
