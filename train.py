"""Fine-tune an image classifier: `python train.py fit --config configs/quickstart.yaml`."""

from lit_finetune.cli.command_line import main

if __name__ == "__main__":
    main()
