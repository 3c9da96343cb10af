"""The self-contained HTML report and its Markdown summary."""
