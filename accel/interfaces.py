"""The one place that imports PyMTL3's standard library: val/rdy streams and queues.

`pymtl3.stdlib.ifcs` holds older en/rdy classes of the same names, so nothing else imports stdlib.
"""

from __future__ import annotations

from pymtl3 import InPort, Interface, OutPort
from pymtl3.stdlib.stream import NormalQueueRTL
from pymtl3.stdlib.stream.ifcs import RecvIfcRTL, SendIfcRTL, valrdy_to_str

__all__ = ["NormalQueueRTL", "RecvIfcRTL", "SendIfcRTL", "VectorRecvIfcRTL"]


class VectorRecvIfcRTL(Interface):
    """Val/rdy input whose word is ``lanes`` messages side by side.

    One port a lane, because a PyMTL3 bit vector ends at 1,023 bits. Not for lanes that move independently:
    val and rdy cover the whole word.
    """

    def construct(s, Type, lanes):
        s.msg = [InPort(Type) for _ in range(lanes)]
        s.val = InPort()
        s.rdy = OutPort()

    def __str__(s):
        return valrdy_to_str("*", s.val, s.rdy, 1)
