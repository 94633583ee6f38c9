"""SkillWeave's headline: one small base with packs against one model for everything."""
