extension StagingLog {
    /// A block's number in two halves, so that half a word is enough for the key: neighbours, and blocks at regular distances, are
    /// in different tables. No drive has more blocks than that names (`BackupJob.largestDrive`).
    struct Name {
        let table: Int
        let key: UInt32

        static let most = Int(BackupJob.largestDrive / JobRecord.blockSize)

        init(_ block: Int) {
            let high = block / StagingLog.tables
            key = UInt32(high)
            table = (block ^ Self.mixed(high)) % StagingLog.tables
        }

        init(table: Int, key: UInt32) {
            self.table = table
            self.key = key
        }

        var block: Int {
            Int(key) * StagingLog.tables + (table ^ Self.mixed(Int(key)))
        }

        private static func mixed(_ high: Int) -> Int {
            Int(truncatingIfNeeded: (UInt64(high) &* 0x9E37_79B9_7F4A_7C15) >> 54)
        }
    }
}
