"""Several tasks trained in one run, on the same images and one pass of one backbone.

Nothing that trains is shared, and nothing else may make a head depend on the others: each has its own initial weights,
optimiser settings, learning rate schedule, gradient clipping, random draws and best bundle, and crops are drawn without
a look at any label. So a head ends as in a joint run of its task alone, bit for bit where the machine computes the same
sum in the same order: always on a processor with a fixed number of threads, and on a GPU up to kernels that add in any
order. Segmentation's is also that of an ordinary run with ``max_class_ratio`` 1; the ordinary runs of depth and
detection have an augmentation of their own.

What heads do share is when a run ends: at a loss that is not finite, with ``patience`` when no head gets better, and
in fp16 the loss scale, so that an overflow in one head skips the step of all.
"""
