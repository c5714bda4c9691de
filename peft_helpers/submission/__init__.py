"""Check a project before handing it in, and put notebook and adapter in one zip. Nothing is run or loaded."""
