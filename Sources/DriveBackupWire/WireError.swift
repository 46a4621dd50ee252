/// A message that could not be decoded or encoded.
public struct WireError: Error, Hashable, CustomStringConvertible {
    public enum Code: Sendable, Hashable {
        /// The bytes are no protobuf message, or not of this type.
        case malformed
        /// A value that the schema does not allow.
        case invalidValue
        /// More than the limits permit.
        case tooLarge
    }

    public var code: Code
    /// The path of the field it is about (`job.error.code`); empty if it is about none.
    public var field: String
    /// What is wrong, without the field.
    public var problem: String
    /// The full name of the message; empty if it is not known.
    public var messageName = ""

    public init(_ code: Code, field: String = "", _ problem: String) {
        self.code = code
        self.field = field
        self.problem = problem
    }

    /// What is wrong, with the field's name: `sync: unknown value 77`.
    public var message: String { field.isEmpty ? problem : "\(field): \(problem)" }

    public var description: String {
        messageName.isEmpty ? message : "\(messageName) is not valid: \(message)"
    }

    /// The same error, of a field within `field`.
    func within(_ field: String) -> WireError {
        var error = self
        error.field = error.field.isEmpty ? field : "\(field).\(error.field)"
        return error
    }

    func `in`(_ messageName: String) -> WireError {
        var error = self
        error.messageName = messageName
        return error
    }
}
