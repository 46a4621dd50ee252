public import CBlockIO

/// The thread of an engine, by what it works for: asked dozens of times a request, and so without touching the engine.
public struct EngineOwner: Sendable {
    @usableFromInline
    let address: UInt

    /// An object that lives as long as the thread works for it; nil: no thread ever is this one, as far as can be told.
    init(_ object: AnyObject?) {
        address = object.map { UInt(bitPattern: ObjectIdentifier($0)) } ?? .max
    }

    /// True on the thread that called `becomeCurrent`.
    @inlinable
    public var isCurrent: Bool { cblockio_current_owner() == address }

    /// Makes the calling thread the owner's.
    func becomeCurrent() { cblockio_set_current_owner(address) }
}
