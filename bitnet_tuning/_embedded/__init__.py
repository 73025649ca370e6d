"""The parts of the embedded engine; ``bitnet_tuning.embedded`` is the program."""
