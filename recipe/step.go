package recipe

// Position is where a step stands in its recipe: 1-based, inclusive lines. What
// concerns the whole file has Start 0.
type Position struct {
	File  string // as the user named it: "Recipe"
	Start int
	End   int
}

// Step is one instruction of a stage: a closed set, one struct an instruction,
// so that a switch over the set can be complete. A Step is always a pointer:
// *Run, *Copy. Words are as written; Expand gives the step with its variables
// replaced, and never changes the one it was given.
type Step interface {
	// At tells where the step stands.
	At() Position
	// Keyword is the instruction in upper case: "RUN".
	Keyword() string
	// Text is the instruction as written, continuation lines joined.
	Text() string
	// line makes the set closed, and lets this package reach what it keeps there.
	line() *Line
}

// Line is what every step has: where it stands and what it says.
type Line struct {
	Pos     Position
	Word    string // "RUN"
	Source  string // the instruction as written, one line
	Trigger string // "" or the text of the ONBUILD trigger that made this step

	spelled  string   // the keyword as written: "Run"
	escape   rune     // of the recipe, for expansion
	comments []string // above it, for "# check=" of this instruction only
}

func (l Line) At() Position    { return l.Pos }
func (l Line) Keyword() string { return l.Word }
func (l Line) Text() string    { return l.Source }
func (l *Line) line() *Line    { return l }

// Pair is one key=value of ENV or LABEL, in order of writing.
type Pair struct{ Key, Value string }

// Heredoc is one here-document: the name it was opened with, its body, and
// whether the body is subject to expansion (its delimiter was not quoted).
// Chomp is the form <<-: the bodies of COPY and ADD have lost their leading tabs
// already, those of RUN have not, since its shell may be the one to do it.
type Heredoc struct {
	Name   string
	Data   string
	Expand bool
	Chomp  bool
}

// Command is what RUN, CMD, ENTRYPOINT and HEALTHCHECK CMD carry.
type Command struct {
	Args  []string // shell form: one element, the line (without the SHELL prefix)
	Shell bool     // shell form: the stage's SHELL goes in front
}

type (
	// Run executes a command; CommandLine gives its argv. Files are the
	// here-documents of its line. Of Mounts only From is known before Expand,
	// since every other value may hold variables, even the type.
	Run struct {
		Line
		Command
		Files    []Heredoc
		Mounts   []Mount
		Network  string   // default, none, host
		Security string   // sandbox, insecure
		Devices  []Device // not supported by any mode yet

		mounts []string // the values of --mount as written
	}

	// Copy is COPY and, with Add set, ADD.
	Copy struct {
		Line
		Add      bool
		Sources  []string
		Inline   []Heredoc // sources that are here-documents
		Dest     string
		From     string
		Chown    string
		Chmod    string
		Link     bool
		Parents  bool
		Exclude  []string
		Checksum string
		KeepGit  *bool
		Unpack   *bool
	}

	Env struct {
		Line
		Vars   []Pair
		legacy bool // "ENV key value"
	}
	Label struct {
		Line
		Labels []Pair
		legacy bool
	}
	Workdir struct {
		Line
		Path string
	}
	User struct {
		Line
		User string
	}
	Cmd struct {
		Line
		Command
	}
	Entrypoint struct {
		Line
		Command
	}
	Expose struct {
		Line
		Ports []string
	} // words sorted, as written; Expand splits them, ParsePorts makes them 80/tcp
	Volume struct {
		Line
		Paths []string
	}
	StopSignal struct {
		Line
		Signal string
	}
	Shell struct {
		Line
		Shell []string
	}
	Maintainer struct {
		Line
		Name string
	}
	Onbuild struct {
		Line
		Expression string
	}
	Healthcheck struct {
		Line
		// Test is docker's: {"NONE"}, {"CMD", args…} or {"CMD-SHELL", line}.
		Test                                          []string
		Interval, Timeout, StartPeriod, StartInterval int64 // nanoseconds; 0 inherits
		Retries                                       int
	}

	// Arg declares build arguments; a nil Value has no default.
	Arg struct {
		Line
		Args []ArgValue
	}
)

// ArgValue is one name of an ARG instruction. Doc is the comment above it.
type ArgValue struct {
	Name  string
	Value *string
	Doc   string
}

// Mount is one RUN --mount. Which fields mean anything depends on Type, and
// Expand has refused the others and filled in the defaults.
type Mount struct {
	Type     string // bind, cache, tmpfs, secret, ssh
	Target   string // as written; TargetIn joins it to the WORKDIR
	Source   string // bind, cache
	From     string // bind, cache: stage, named context or image; "" is the build context, or for a cache nothing
	ReadOnly bool
	ID       string // cache, secret, ssh: never empty
	Sharing  string // cache: shared, private, locked
	Required bool   // secret, ssh
	Env      string // secret: the variable to set; then Target "" means no file
	Size     int64  // tmpfs: bytes, 0 unlimited
	Mode     *uint64
	UID, GID *uint64 // cache: nil when not written; secret, ssh: always set
}

// Device is one RUN --device.
type Device struct {
	Name     string
	Required bool
}
