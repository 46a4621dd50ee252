/// How the files of a drive are used, in the words of QEMU's `cache`.
package enum CacheMode: String, Sendable, Hashable, CaseIterable {
    /// Through the host's page cache.
    case writeback
    /// Past the page cache, from memory to disk (O_DIRECT): for guests that have a cache of their own.
    case none
}
