package import BlockIO

/// A device under a name by which clients ask for it.
package struct NBDExport: Sendable {
    /// What clients ask for; at most 4096 bytes (NBD proto.md, "String values").
    package var name: String
    /// A sentence for people, sent with NBD_INFO_DESCRIPTION; empty for none.
    package var description: String
    /// What is served. All its requests run on its engine.
    package var device: any BlockDevice
    /// Refuses every request that would change the device.
    package var isReadOnly: Bool

    package init(name: String, description: String = "", device: any BlockDevice, isReadOnly: Bool) {
        self.name = name
        self.description = description
        self.device = device
        self.isReadOnly = isReadOnly
    }
}
