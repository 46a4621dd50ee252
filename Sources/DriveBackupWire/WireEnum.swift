/// An enum of the schema: open, since a newer peer may know more values.
public protocol WireEnum: RawRepresentable, CaseIterable, Sendable, Hashable, CustomStringConvertible
where RawValue == Int32, AllCases == [Self] {
    init(rawValue: Int32)

    /// The value's name in the schema without the type's prefix, in lower case; nil if the schema does not know it.
    var knownName: String? { get }
}

extension WireEnum {
    public init() { self.init(rawValue: 0) }

    /// The value that JSON calls `jsonName`, or nil.
    public init?(jsonName: String) {
        guard let value = Self.allCases.first(where: { $0.knownName == jsonName }) else { return nil }
        self = value
    }

    /// Whether the schema knows the value.
    public var isKnown: Bool { knownName != nil }

    /// Whether it is the value that stands for "not given".
    public var isUnspecified: Bool { rawValue == 0 && knownName == "unspecified" }

    /// `running` for `JOB_STATE_RUNNING`; the number of a value that the schema does not know.
    public var jsonName: String { knownName ?? String(rawValue) }

    /// The same as `jsonName`.
    public var name: String { jsonName }

    public var description: String { jsonName }
}
