"""What packs cost in time and in memory, against the base and against PEFT."""
