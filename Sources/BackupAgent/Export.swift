/// What a client is told about an export.
package struct ExportInfo: Sendable, Hashable {
    package var name: String
    package var drive: String
    package var address: String
    package var isReadOnly: Bool
    /// The job whose point in time is served; nil where it is the drive as it is.
    package var snapshotOf: String?
    /// How many clients have it open.
    package var clients = 0
    package var isFromCommandLine: Bool
    /// Why it is not served.
    package var problem: String?
}

/// What somebody wants to be served, checked word by word.
package struct ExportSpec: Sendable, Hashable {
    package var name: String
    /// Empty for a point in time whose drive was not named.
    package var drive: String
    package var address: ExportAddress
    package var isReadOnly: Bool
    /// The job whose point in time is to be served.
    package var snapshotOf: String?
}
