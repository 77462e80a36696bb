"""Parameters that QEMU's TLS servers would make anew at every start, for a second of CPU and more, and never use.

QEMU loads dh-params.pem of its folder for any server; where there is none it generates 2048 bits. TLS 1.3 agrees on
a group by its name and never looks at them. These are ffdhe2048 of RFC 7919, appendix A.1.
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
