/// Rows of text in aligned columns, under a line of titles.
struct Table {
    enum Alignment {
        case left, right
    }

    private let alignments: [Alignment]
    private var rows: [[String]]

    init(_ columns: [(title: String, alignment: Alignment)]) {
        alignments = columns.map(\.alignment)
        rows = [columns.map(\.title)]
    }

    /// Adds a row; one text a column, `-` where there is none.
    mutating func add(_ cells: [String]) {
        precondition(cells.count == alignments.count, "a row has as many cells as the table has columns")
        rows.append(cells.map { $0.isEmpty ? "-" : ColumnText.printable($0) })
    }

    /// The lines, titles first, without blanks at their ends.
    var lines: [String] {
        let widths = alignments.indices.map { column in rows.map { ColumnText.width($0[column]) }.max() ?? 0 }
        return rows.map { row in
            var line = ""
            for (column, cell) in row.enumerated() {
                if column > 0 { line += "  " }
                let isLast = column == row.count - 1
                let right = alignments[column] == .right
                line += isLast && !right ? cell : ColumnText.padded(cell, to: widths[column], right: right)
            }
            return line
        }
    }
}
