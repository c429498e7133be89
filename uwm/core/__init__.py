"""Floor 0, the words: streams, roles, levels, patterns and plans. No network and no data live here."""
