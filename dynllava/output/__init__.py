"""Files written whole or not at all, and tables as text, Markdown and CSV."""
