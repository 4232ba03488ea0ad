package istiopolicy

import (
	"fmt"
	"strings"

	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/istiod/jwks"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// RequestAuthentication translates the rules of which one must accept a token, if a request has one. The result is
// never nil. A rule whose keys cannot be had stays, with keys that accept no token: without it, its tokens would be
// overlooked.
func RequestAuthentication(cfg translate.Config, ra *securityv1.RequestAuthentication) (*model.JWTPolicy, error) {
	spec := &ra.Spec
	p := &problems{}
	out := &model.JWTPolicy{Meta: meta(model.KindRequestAuthentication, ra.ObjectMeta)}
	out.Targets, out.Selector = p.attachment(cfg, ra.Namespace, spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs())
	for i, r := range spec.GetJwtRules() {
		out.Rules = append(out.Rules, p.jwtRule(fmt.Sprintf("spec.jwtRules[%d]", i), r))
	}
	out.Warnings = p.warnings
	return out, p.err()
}

func (p *problems) jwtRule(field string, r *securityapi.JWTRule) model.JWTRule {
	out := model.JWTRule{
		Issuer:         r.GetIssuer(),
		Audiences:      p.nonEmpty(field+".audiences", r.GetAudiences()),
		FromParams:     p.nonEmpty(field+".fromParams", r.GetFromParams()),
		FromCookies:    p.nonEmpty(field+".fromCookies", r.GetFromCookies()),
		OutputHeader:   p.header(field+".outputPayloadToHeader", r.GetOutputPayloadToHeader()),
		Forward:        r.GetForwardOriginalToken(),
		SpaceDelimited: p.nonEmpty(field+".spaceDelimitedClaims", r.GetSpaceDelimitedClaims()),
	}
	p.keys(field, r, &out)
	if len(r.GetAudiences()) > 0 && len(out.Audiences) == 0 {
		out.JWKS = model.UnusableJWKS // without any audience, tokens for everybody would be accepted
	}
	for i, h := range r.GetFromHeaders() {
		if name := p.header(fmt.Sprintf("%s.fromHeaders[%d].name", field, i), h.GetName()); name != "" {
			out.FromHeaders = append(out.FromHeaders, model.JWTHeader{Name: name, Prefix: h.GetPrefix()})
		} else if h.GetName() == "" {
			p.fail(fmt.Sprintf("%s.fromHeaders[%d].name", field, i), "empty")
		}
	}
	for i, c := range r.GetOutputClaimToHeaders() {
		at := fmt.Sprintf("%s.outputClaimToHeaders[%d]", field, i)
		if c.GetClaim() == "" || c.GetHeader() == "" {
			p.fail(at, "header and claim must be set")
			continue
		}
		if name := p.header(at+".header", c.GetHeader()); name != "" {
			out.ClaimToHeaders = append(out.ClaimToHeaders, model.ClaimHeader{Header: name, Claim: c.GetClaim()})
		}
	}
	if d := r.GetTimeout(); d != nil {
		if out.Timeout = d.AsDuration(); d.CheckValid() != nil || out.Timeout <= 0 {
			p.failValue(field+".timeout", out.Timeout.String(), "is not positive")
			out.Timeout = 0
		}
	}
	return out
}

// keys reads where the keys come from: given, by URI, or by discovery from the issuer.
func (p *problems) keys(field string, r *securityapi.JWTRule, out *model.JWTRule) {
	inline, uri := r.GetJwks(), r.GetJwksUri()
	switch {
	case inline != "":
		if uri != "" {
			p.warn("%s.jwksUri: jwks is set too and is used", field)
		}
		set, err := jwks.Normalize([]byte(inline))
		if err != nil {
			p.fail(field+".jwks", "%w", err)
			set = model.UnusableJWKS
		}
		out.JWKS = set
	case uri != "":
		if err := jwks.CheckURL(uri); err != nil {
			p.fail(field+".jwksUri", "%w", err)
			out.JWKS = model.UnusableJWKS
			return
		}
		out.JWKSURI = uri
	case out.Issuer == "":
		p.fail(field+".issuer", "empty, and neither jwks nor jwksUri is set")
		out.JWKS = model.UnusableJWKS
	default:
		if err := jwks.CheckURL(out.Issuer); err != nil {
			p.fail(field+".issuer", "%w; keys are looked for at the issuer, since neither jwks nor jwksUri is set", err)
			out.JWKS = model.UnusableJWKS
		}
	}
}

// header checks a header's name. It returns "" for one that is empty or not a name.
func (p *problems) header(field, name string) string {
	if name == "" {
		return ""
	}
	if strings.HasPrefix(name, ":") || !headerName(name) {
		p.failValue(field, name, "is not the name of a header")
		return ""
	}
	return name
}

func (p *problems) nonEmpty(field string, in []string) []string {
	var out []string
	for _, s := range in {
		if s == "" {
			p.fail(field, "holds an empty value")
			continue
		}
		out = append(out, s)
	}
	return out
}
