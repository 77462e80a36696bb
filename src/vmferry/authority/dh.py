"""DH parameters for QEMU's TLS servers, which would else generate them at every start and never use them.

QEMU loads dh-params.pem of its folder for any server; where there is none it generates 2048 bits, which costs a second
of CPU or more. TLS 1.3 agrees on a group by its name and never looks at them. These are ffdhe2048 of RFC 7919,
appendix A.1.
"""

from __future__ import annotations

DH_PARAMS = "dh-params.pem"
FFDHE2048 = b"""\
-----BEGIN DH PARAMETERS-----
MIIBDAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAgICAQA=
-----END DH PARAMETERS-----
"""
