"""One file for each operator: its cases, inputs, peers, floor and goals, as a list `SUITES`."""
