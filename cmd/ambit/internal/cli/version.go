package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/charts"
)

// versionInfo is what `ambit version` prints. The charts' version is the product's.
type versionInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func newVersion() *cobra.Command {
	format := textOutput
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this tool and of the charts it carries",
		Example: "  ambit version\n  ambit version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := readVersion()
			if err != nil {
				return err
			}
			if format == jsonOutput {
				return printJSON(cmd.OutOrStdout(), v)
			}
			commit := v.Commit
			if v.Modified {
				commit += " (modified)"
			}
			if commit != "" {
				commit = ", commit " + commit
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "ambit %s%s, %s, %s\n", v.Version, commit, v.Go, v.Platform)
			return err
		},
	}
	cmd.Flags().VarP(&format, "output", "o", "text or json")
	return cmd
}

func readVersion() (versionInfo, error) {
	base, err := charts.Load("base")
	if err != nil {
		return versionInfo{}, err
	}
	v := versionInfo{Version: base.Metadata.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v, nil
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v, nil
}
