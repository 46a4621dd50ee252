public import CBlockIO

/// Has the processor bring what is at `address` into its cache, without waiting for it; nothing happens where nothing is.
@inlinable
public func prefetch(_ address: UnsafeRawPointer?) { cblockio_prefetch(address) }
