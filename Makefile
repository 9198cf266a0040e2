# The commands that people type. `make` alone lists them.

.PHONY: help check fast test docs serve

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

check:  ## ruff and mypy
	ruff check . && ruff format --check . && mypy

fast:  ## the tests of the core that take no training: under a minute
	pytest -m "not (slow or long or sweep or network)" lit_finetune callbacks datamodules tests/schedules tests/optim tests/freezing tests/test_architecture.py

test:  ## all tests but the marked ones: minutes
	pytest

docs:  ## the documentation site, into site/; a warning is an error
	zensical build --clean --strict

serve:  ## show the site at http://localhost:8000 and build it again at each change
	zensical serve
