"""The ground floor: low-rank algebra, trainable pairs, and the files that carry them.

Letters, the same in every module of this package:

    W     a frozen linear of the base, O x I: y = W x + b
    dW    the addition to W; never formed, always dW = up @ down
    up    O x R, the papers' B or W_up
    down  R x I, the papers' A or W_down
    A, B  frozen and learnable rows of up         C, D  frozen and learnable columns of down

A *delta* is an `nn.Module` that maps the linear's input x (..., I) to the addition to its output
(..., O). Nothing here imports diffusers: a denoiser is met as a module with named linears.
"""
