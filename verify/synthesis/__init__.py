"""Synthesis of a core: yosys and nextpnr, what they find, and guards that fail on hardware that nobody wanted."""
