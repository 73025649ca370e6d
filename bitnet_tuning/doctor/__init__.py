"""What keeps this machine, engine and model from their speed.

``facts`` holds what was read, each check decides one knob, ``examine`` runs them all.
Every module here is pure; ``cli.doctor_facts`` reads and ``cli.doctor_table`` shows.
"""
