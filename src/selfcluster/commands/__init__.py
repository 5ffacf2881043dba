"""The verbs of the command line, one a file: `HELP`, `add_flags`, the public function and `run_command`."""
