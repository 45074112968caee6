"""Zero-shot and class-conditional classification by denoising error (Clark & Jaini; Li et al.)."""
