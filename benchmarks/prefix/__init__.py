"""Prompts that the backbone reads for all packs: what a skill keeps (``kept``), and what it saves (``time``)."""
