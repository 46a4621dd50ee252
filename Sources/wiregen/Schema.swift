/// A schema as `wiregen` needs it: what the descriptor set says, with the comments where they belong.
struct Schema {
    var files: [SchemaFile] = []

    /// Every enum of the schema by its full name, for finding the types of fields.
    var enums: [String: SchemaEnum] {
        var result: [String: SchemaEnum] = [:]
        for file in files { for each in file.enums { result[each.fullName] = each } }
        return result
    }
}

struct SchemaFile {
    /// As it is imported: `drivebackup/v1/jobs.proto`.
    var path: String
    /// `drivebackup.v1`.
    var package: String
    var comment: String
    var messages: [SchemaMessage] = []
    var enums: [SchemaEnum] = []
    var services: [SchemaService] = []
}

struct SchemaMessage {
    var name: String
    /// `drivebackup.v1.Job`.
    var fullName: String
    var comment: String
    var fields: [SchemaField] = []
    var oneofs: [String] = []
}

struct SchemaField {
    enum Kind: Hashable {
        case bool, int32, int64, uint32, uint64, fixed64, string, bytes
        /// The full name of the enum.
        case enumeration(String)
        /// The full name of the message.
        case message(String)
    }

    var name: String
    var number: Int
    var kind: Kind
    var isRepeated: Bool
    /// The index in the message's `oneofs`.
    var oneof: Int?
    var comment: String
}

struct SchemaEnum {
    struct Value {
        var name: String
        var number: Int32
        var comment: String
    }

    var name: String
    var fullName: String
    var comment: String
    var values: [Value] = []
}

struct SchemaService {
    struct Method {
        var name: String
        /// The full names of the messages.
        var request: String
        var response: String
        var isServerStreaming: Bool
        var comment: String
    }

    var name: String
    var fullName: String
    var comment: String
    var methods: [Method] = []
}

/// Something in the schema, or on the command line, that `wiregen` cannot turn into code.
struct GeneratorError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}
