extension Staging {
    /// How much of the space is used, in bytes.
    package struct Usage: Sendable, Hashable {
        package var used: UInt64
        /// The bound: what was asked for, or what the file system has to give.
        package var limit: UInt64

        package init(used: UInt64, limit: UInt64) {
            self.used = used
            self.limit = limit
        }
    }

    /// What a file system has, in bytes.
    package struct Space: Sendable, Hashable {
        package var total: UInt64
        package var available: UInt64

        package init(total: UInt64, available: UInt64) {
            self.total = total
            self.available = available
        }

        /// What is never taken: the last tenth, and at least the last GiB.
        var spared: UInt64 { max(total / 10, 1 << 30) }
    }
}
