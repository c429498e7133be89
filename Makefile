# Aliases only: the work is in run.py, which needs nothing but Python 3.11 or 3.12 with pip.
.PHONY: demo test check lock

demo:  ## set up, then the main job
	python3 run.py demo

test:  ## set up, then the tests
	python3 run.py test

check:  ## lint and import order, in seconds
	python3 run.py setup
	.venv/bin/ruff check .

lock:  ## compile requirements.lock again from pyproject.toml
	python3 run.py lock
