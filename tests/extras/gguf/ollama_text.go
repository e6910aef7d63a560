// Writes conversations with a TEMPLATE as Ollama does, by Go's own text/template: one JSON object a
// line in, one JSON text a line out. Options, functions and values are those of Ollama's
// template.go, as read in August 2026.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role, Content, Thinking string
}

type request struct {
	Template string
	Messages []*message
	Think    *bool
}

func joined(messages []*message) (string, []*message) {
	var system []string
	var found []*message
	for _, one := range messages {
		if one.Role == "system" {
			system = append(system, one.Content)
		}
		if last := len(found) - 1; last >= 0 && found[last].Role == one.Role && one.Role != "tool" {
			found[last].Content += "\n\n" + one.Content
		} else {
			found = append(found, one)
		}
	}
	return strings.Join(system, "\n\n"), found
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked request
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			panic(err)
		}
		made, err := template.New("").Option("missingkey=zero").Parse(asked.Template)
		if err != nil {
			panic(err)
		}
		system, messages := joined(asked.Messages)
		var text strings.Builder
		err = made.Execute(&text, map[string]any{
			"System":     system,
			"Messages":   messages,
			"Response":   "",
			"Think":      asked.Think != nil && *asked.Think,
			"IsThinkSet": asked.Think != nil,
		})
		if err != nil {
			panic(err)
		}
		if err := out.Encode(text.String()); err != nil {
			panic(err)
		}
	}
}
