"""Several methods on one task or folder, with few and many labels: what each reaches, and what it costs."""
