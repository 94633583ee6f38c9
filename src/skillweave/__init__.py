"""SkillWeave: one base, many skills."""

__version__ = "0.1.0"
