"""The quality of a pack at equal bytes: SkillZip against other codecs, on short and on long fine-tunes."""
