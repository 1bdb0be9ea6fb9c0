"""What transformers have beside other networks: stochastic depth, LoRA, fine-tuning by the family.

Imports the root of `networks`, timm, and peft where LoRA is asked for.
Enter at `family.suit`, `stochastic_depth.drop_branches` and `lora.add_adapters`.
"""
