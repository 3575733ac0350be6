"""One byte per gradient: machines tune one model together by zeroth-order measurements along shared directions."""
