"""Speed and memory, side by side with docker-registry in proxy mode, and with nginx as the limit.

``python -m bench [NAME...]``. The machine is taken to be noisy, so what counts is ratios: the
programs take turns within one run, on one config file, and each figure is given as minimum, median
and maximum.
"""
