internal import DriveBackupClient

/// Tells people or programs what a job does, event by event.
actor JobReporter {
    enum Style: Sendable {
        /// The events as JSON, one a line.
        case json
        /// A line at each change of state, and every ten seconds.
        case lines
        /// One line that is drawn anew, and lines above it for what must not be missed.
        case bar(width: @Sendable () -> Int, unicode: Bool)
    }

    private let style: Style
    private let console: Console
    /// Where lines for people go.
    private let stream: Console.Stream
    private let clock: @Sendable () -> Duration
    private(set) var story: JobStory
    private var meter = RateMeter()
    private var lastLine: Duration
    private var hasEnded = false

    /// - Parameter clock: the time since any instant; it never goes back.
    init(
        _ style: Style, console: Console, stream: Console.Stream, story: JobStory,
        clock: @escaping @Sendable () -> Duration
    ) {
        self.style = style
        self.console = console
        self.stream = stream
        self.story = story
        self.clock = clock
        lastLine = clock()
    }

    func handle(_ event: JobEvent) {
        let previous = story.state
        story.apply(event)
        if case .json = style {
            console.print(event.json())
            return
        }
        switch event.event {
        case .started:
            meter.restart()
            if case .lines = style { say(story.beginning) }
        case .stateChanged:
            if story.state != .running || previous == .paused { meter.restart() }
            if story.end == nil, let line = story.change(from: previous) { say(line) }
        case .ioError(let error):
            say(JobStory.sentence(error))
        case .pending:
            say(story.pending)
        case .progress, .completed, .failed, .cancelled, nil:
            break
        }
        if story.state == .running || story.state.isUnspecified { meter.note(story.current, at: clock()) }
        draw()
    }

    /// Shows what is known before the first event: a job that was met on its way.
    func introduce() {
        if case .lines = style {
            say(story.beginning)
            if story.total > 0 { say(ProgressLine(story, rate: nil).text) }
        }
        if story.awaitsFinalize { remark(story.pending) }
        if story.pauseReason == .error, let line = story.change(from: .running) { remark(line) }
        draw()
    }

    /// Whether nothing more is to be expected from the job, even if its stream goes on.
    var isOver: Bool { story.end != nil && story.state == .concluded }

    /// The agent has told the job's id.
    func rename(_ id: String) { story.id = id }

    /// Says something that is no event of the job.
    func remark(_ line: String) {
        if case .json = style { return }
        say(line)
    }

    /// Something may have to be shown because time has passed.
    func tick() {
        let now = clock()
        let isKnown = !story.state.isUnspecified || story.total > 0
        if case .lines = style, isKnown, !hasEnded, story.end == nil, now - lastLine >= .seconds(10) {
            say(ProgressLine(story, rate: meter.rate(at: now)).text)
        }
        draw()
    }

    /// The terminal has another size.
    func resized() {
        draw()
        console.redrawStatus()
    }

    /// Takes the bar away and says how the job ended, if it has. The end of a failed job is left to the caller.
    func conclude() {
        hasEnded = true
        console.setStatus("")
        if case .json = style { return }
        if case .failed = story.end { return }
        if let ending = story.ending { say(ending) }
    }

    private func say(_ line: String) {
        lastLine = clock()
        console.print(line, to: stream)
    }

    private func draw() {
        guard case .bar(let width, let unicode) = style, !hasEnded else { return }
        guard story.total > 0 || story.current > 0 else { return }
        let bar = ProgressBar(
            name: story.id, current: story.current, total: story.total, rate: meter.rate(at: clock()),
            note: story.note)
        // The last column stays free: a terminal that has written there may be on the next line already.
        console.setStatus(bar.line(width: width() - 1, unicode: unicode))
    }
}
