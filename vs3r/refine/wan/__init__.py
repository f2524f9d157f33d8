"""Refinement with Wan2.2, the dual-stream video diffusion model of the paper's section 3.4. See docs/refine.md."""
