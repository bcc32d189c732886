"""What `import pathray` gives, an object per file. Thin: the work is done in the groups below (`wsi`, `features` …)."""
