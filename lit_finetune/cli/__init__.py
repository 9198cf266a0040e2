"""The command line: Lightning's, with our models, data and defaults.

Arguments and YAML in, a run out. Nothing imports it. Uses everything.
"""

from lit_finetune.cli.command_line import FinetuneCLI as FinetuneCLI
from lit_finetune.cli.command_line import main as main
