"""Everything that can happen to a server: overload, kills, damaged packs, a full disk, and clients that misbehave."""
