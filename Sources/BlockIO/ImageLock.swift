internal import CBlockIO
internal import Glibc

/// What one opener of an image may do with it and what it lets others do, agreed upon with every other process
/// through QEMU's locks.
///
/// The locks are open-file-description locks (fcntl(2)) on single bytes of the file: a shared lock on byte 100 + *n*
/// says that its owner has permission *n*, one on byte 200 + *n* that its owner does not want others to have it. An
/// opener first takes its own locks, then looks for conflicting ones of others; since everybody does both in this
/// order, of two openers that conflict at most one goes on. The locks end when the open file description is
/// closed, also by a crash.
package struct ImageLock: Sendable {
    /// What can be done with an image; the numbers are QEMU's (`BLK_PERM_*`).
    package struct Permissions: OptionSet, Sendable, Hashable {
        package let rawValue: UInt8
        package init(rawValue: UInt8) { self.rawValue = rawValue }

        /// To read, and to find there what was written.
        package static let consistentRead = Permissions(rawValue: 1)
        package static let write = Permissions(rawValue: 2)
        /// To write what reads the same afterwards.
        package static let writeUnchanged = Permissions(rawValue: 4)
        package static let resize = Permissions(rawValue: 8)
        /// Everything that can be done.
        package static let all: Permissions = [.consistentRead, .write, .writeUnchanged, .resize]

        /// All of them, in the order in which conflicts are looked for: that about writing says most.
        static let numbers: [UInt64] = [1, 3, 2, 0]

        func contains(number: UInt64) -> Bool { rawValue & (1 << UInt8(number)) != 0 }

        fileprivate static func verb(_ number: UInt64) -> String {
            switch number {
            case 0: "reading"
            case 3: "resizing"
            default: "writing"
            }
        }
    }

    private static let heldBase: UInt64 = 100
    private static let unsharedBase: UInt64 = 200

    /// The file's path, for messages.
    package let path: String
    /// What the lock's owner may do.
    package private(set) var holding: Permissions = []
    /// What nobody else may do meanwhile.
    package private(set) var unsharing: Permissions = []

    private let descriptor: Int32

    /// Takes the locks on `descriptor`, which must be open for reading and stay open as long as they are wanted.
    ///
    /// Returns at once; call it inside `IOEngine.blocking` all the same. Throws `.locked` when another open file
    /// description conflicts, here or in another process, and then holds nothing.
    @discardableResult
    package static func acquire(
        _ descriptor: Int32, holding: Permissions, unsharing: Permissions, path: String
    ) throws(BlockError) -> ImageLock {
        var lock = ImageLock(path: path, descriptor: descriptor)
        try lock.change(holding: holding, unsharing: unsharing)
        return lock
    }

    private init(path: String, descriptor: Int32) {
        self.path = path
        self.descriptor = descriptor
    }

    /// Takes locks that another open file description of this process holds already on this one, too: they end when both are
    /// closed. Throws what the system says.
    static func share(
        _ descriptor: Int32, holding: Permissions, unsharing: Permissions
    ) throws(BlockError) {
        let lock = ImageLock(path: "", descriptor: descriptor)
        for number in Permissions.numbers {
            if holding.contains(number: number) { try lock.take(heldBase + number, for: number) }
            if unsharing.contains(number: number) { try lock.take(unsharedBase + number, for: number) }
        }
    }

    /// Changes what is held and unshared to exactly this; after an error it is as before.
    package mutating func change(holding: Permissions, unsharing: Permissions) throws(BlockError) {
        let old = self
        do throws(BlockError) {
            for number in Permissions.numbers {
                if holding.contains(number: number) && !self.holding.contains(number: number) {
                    try take(Self.heldBase + number, for: number)
                }
                if unsharing.contains(number: number) && !self.unsharing.contains(number: number) {
                    try take(Self.unsharedBase + number, for: number)
                }
            }
            try check(holding: holding, unsharing: unsharing)
        } catch {
            drop(held: holding.subtracting(old.holding), unshared: unsharing.subtracting(old.unsharing))
            throw error
        }
        drop(held: old.holding.subtracting(holding), unshared: old.unsharing.subtracting(unsharing))
        self.holding = holding
        self.unsharing = unsharing
    }

    /// Ends all such locks of an open file description, at once: closing its descriptor does so only when no child process
    /// that was just started still has a copy of it.
    package static func releaseAll(_ descriptor: Int32) {
        for number in Permissions.numbers {
            _ = cblockio_unlock(descriptor, heldBase + number)
            _ = cblockio_unlock(descriptor, unsharedBase + number)
        }
    }

    private func take(_ byte: UInt64, for number: UInt64) throws(BlockError) {
        let result = cblockio_lock_shared(descriptor, byte)
        if result == 0 { return }
        // Nobody who keeps to the rules locks these bytes exclusively; someone who does is in the way all the same.
        if result == -EAGAIN || result == -EACCES {
            throw conflict(number, "another process has locked it")
        }
        throw BlockError("Couldn't lock \(path) for \(Permissions.verb(number))", errno: -result)
    }

    /// Looks for locks of others that conflict with ours.
    private func check(holding: Permissions, unsharing: Permissions) throws(BlockError) {
        for number in Permissions.numbers {
            let verb = Permissions.verb(number)
            if holding.contains(number: number), try isLocked(Self.unsharedBase + number) {
                throw conflict(number, "it is open elsewhere, where \(verb) by others is not allowed")
            }
            if unsharing.contains(number: number), try isLocked(Self.heldBase + number) {
                throw conflict(number, "it is open for \(verb) elsewhere")
            }
        }
    }

    private func isLocked(_ byte: UInt64) throws(BlockError) -> Bool {
        let result = cblockio_is_locked(descriptor, byte)
        guard result >= 0 else { throw BlockError("Couldn't look for locks on \(path)", errno: -result) }
        return result == 1
    }

    private func conflict(_ number: UInt64, _ why: String) -> BlockError {
        BlockError(
            .locked,
            "Couldn't lock \(path) for \(Permissions.verb(number)): \(why) (is a virtual machine using it?)")
    }

    private func drop(held: Permissions, unshared: Permissions) {
        for number in Permissions.numbers {
            // Unlocking a byte of an open file cannot fail in a way that leaves anything to do.
            if held.contains(number: number) { _ = cblockio_unlock(descriptor, Self.heldBase + number) }
            if unshared.contains(number: number) {
                _ = cblockio_unlock(descriptor, Self.unsharedBase + number)
            }
        }
    }
}
