"""The mathematics of diffusion that samplers, likelihoods and objectives share: one idea a file."""
