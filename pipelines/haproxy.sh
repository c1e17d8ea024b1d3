#!/bin/sh
# HAProxy as Ray Serve starts it, without splice(): with it, HAProxy 2.8 does not notice that a client goes away whose
# request body came in a packet after the header, and its images would be drawn for nobody (tests/cluster/test_serving.py).
# NVG_HAPROXY: the program; else the one in PATH.
exec "${NVG_HAPROXY:-haproxy}" -dS "$@"
