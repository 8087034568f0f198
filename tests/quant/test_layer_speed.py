from __future__ import annotations

import pytest
import torch

from quant import LayerSettings, NMPattern, layer_speed
from quant.layer import quantize_layer


def test_what_is_timed_is_the_layer_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def record(weights, statistics, settings):  # type: ignore[no-untyped-def]
        seen.append((weights, statistics, settings))
        return quantize_layer(weights, statistics, settings)

    monkeypatch.setattr(layer_speed, "quantize_layer", record)
    assert layer_speed.quantize_seconds(size=128) > 0
    layer_speed.quantize_seconds(LayerSettings(NMPattern(1, 4), 64, method="wanda-rtn"), 64, seed=1)
    (first, statistics, settings), (second, _, others) = seen
    assert first.shape == (128, 128)
    assert second.shape == (64, 64)
    assert str(settings.pattern) == "2:4"
    assert settings.method == "joint"
    assert others.method == "wanda-rtn"
    assert statistics.rows == 256
    # Features are correlated: the largest eigenvalue is far above the mean.
    eigenvalues = torch.linalg.eigvalsh(statistics.hessian)
    assert eigenvalues[-1] > 5 * eigenvalues.mean()
