"""Operations that XLA computes slowly on a CPU, each beside its plain form.

conv          convolutions whose derivatives are convolutions too, of any order
group_norm    group normalisation, optionally with swish, and its two derivatives
materialise   identities that tell XLA's CPU backend to compute a value once
native        the C++ functions in cpu/, compiled on first use where the machine can

Accelerators get XLA's own forms. The functions of cpu/ are the fast form of something that has a
form in JAX, and tests hold one against the other.
"""
