"""What a user runs: the ``nimble`` command and the flows behind it (trace, estimate, verilog, ...).

Each flow has its own module with the logic; `flows.cli` only maps options to it and
`flows.terminal` holds what all commands share. Nothing heavy is imported here.
"""
