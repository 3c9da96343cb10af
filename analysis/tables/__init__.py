"""The paper's tables as data, and their files in every format."""
